"""`python -m ablations.engine …`, an older name of the console command `ablations …`."""

from ablations.__main__ import main

if __name__ == "__main__":
    main()
