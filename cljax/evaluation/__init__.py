"""What is asked of trained networks: accuracy, readouts, inference of tasks."""
