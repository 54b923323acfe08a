"""How fast asyncq is, beside the bare limit of the same scripts on the same server in the same run."""
