"""What ties a method to its authors' released code: weight names, and how a golden case is recomputed."""
