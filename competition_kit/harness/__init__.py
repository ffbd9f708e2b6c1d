"""Cells (arm x seed x fold), their files, and the engines that compute them."""
