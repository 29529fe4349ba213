"""Losses: functions and small modules on tensors; none knows a method."""
