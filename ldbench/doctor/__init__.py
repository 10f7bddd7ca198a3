"""What this machine can do, each thing tried."""
