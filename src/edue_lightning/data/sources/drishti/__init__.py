"""DRISHTI-GS1: fundus photographs with the votes of four experts on optic disc and cup."""
