"""Data: build VTAB-1k folders from torchvision's data sets, and verify folders before use."""
