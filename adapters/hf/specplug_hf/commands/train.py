"""`specplug train`: what drafts for a model of yours, trained on text of yours. One recipe a subcommand."""

from __future__ import annotations

import argparse
import importlib

RECIPES = ("mlp_speculator", "draft", "layers")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`specplug train`: train what drafts for a model."""
    parser = subparsers.add_parser(
        "train",
        help="train what drafts for a model: on text, then on what the model itself writes",
        description="Each recipe shows its progress, goes on with --resume where it was interrupted, and writes safetensors and "
        "JSON only. The target itself is never changed.",
    )
    recipes = parser.add_subparsers(title="recipes", required=True, metavar="RECIPE")
    for name in RECIPES:
        importlib.import_module(f"specplug_hf.training.{name}_command").add_parser(recipes)
