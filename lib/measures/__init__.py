"""Distances between images and sets of images."""
