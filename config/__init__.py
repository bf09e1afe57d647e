"""
The experiments, one file each: python train.py config/NAME.py

A config assigns keys of train.py and may begin with one other config. This file makes the folder a package,
so that no other module of the name `config` is imported in its place.
"""
