"""Training what drafts: data, a loop that goes on where it was interrupted, recipes. One recipe a file, and its command."""
