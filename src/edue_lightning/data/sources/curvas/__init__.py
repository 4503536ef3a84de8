"""CURVAS and CURVAS-PDACVI: CT volumes outlined by three and five experts."""
