"""COCO's numbers for YOLO data sets, and what differences between models mean."""
