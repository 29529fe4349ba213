"""What the verbs run: training, evaluation, scoring, prediction, benchmarks."""
