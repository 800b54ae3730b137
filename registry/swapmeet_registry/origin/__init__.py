"""What a version comes from: its training, its lineage, its licences, and the bill of materials that says so."""
