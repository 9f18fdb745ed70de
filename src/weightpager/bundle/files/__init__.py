"""Files and directories: read and hashed in pieces, bounded in size, written whole or not at all."""
