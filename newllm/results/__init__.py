"""What runs leave to be read: records, verdicts, summaries, climbs. Nothing here needs torch."""
