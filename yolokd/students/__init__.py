"""Students of other kinds than YOLO detectors from their YAML: kinds, pruned models, RT-DETR."""
