"""MESM: QD-DETR with frames enhanced by words (FW-MESM) and queries by a generated token (SS-MESM)."""
