"""HECKTOR: outlines of head-and-neck tumours and lymph nodes on FDG-PET/CT."""
