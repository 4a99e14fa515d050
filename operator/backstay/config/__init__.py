"""What a compiled configuration is and means: the one package that operator and sidecar share.

Rule: this is a leaf. It imports nothing of Backstay, reads no clock and no file, and stays cheap to import, because
every sidecar loads it.
"""
