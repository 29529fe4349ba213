"""Network parts that more than one method uses. No block knows a method's name."""
