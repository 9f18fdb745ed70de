"""What a contest plans and finds: rows, facts and figures. Pure."""
