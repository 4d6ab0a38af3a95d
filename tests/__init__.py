import sys

COMMAND = [sys.executable, "-c", "from stylus.cli import main; main()"]
"""`stylus` of this checkout, whatever is installed."""
