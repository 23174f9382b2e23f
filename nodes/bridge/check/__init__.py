"""A check of the device that ComfyUI computes on: whether results are right there, how much memory and time they take.

All of it runs on networks of ComfyUI's own classes with seeded weights; nothing is downloaded, and no file is read.
"""
