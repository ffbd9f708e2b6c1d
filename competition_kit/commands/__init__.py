"""The commands, one file each: its flags, what it calls, what it prints.

A module here has `add(commands)`, which adds the command's parser; its default `run` is called with
the parsed options and returns the exit code. Nothing heavy is imported before a command runs.
"""
