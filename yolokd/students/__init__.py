"""Where students start, and those of other kinds than YOLO detectors from their YAML: pruned models, RT-DETR."""
