"""The smallest adapter there can be: a toy model whose every law can be written down, and a host around it.

Plugins are checked here without any framework, and a new adapter can be read off from it.
"""
