"""Folders of patients with a DICOM series and its outlines or segmentations."""
