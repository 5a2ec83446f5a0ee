"""Where curves go beside the run's folder: TensorBoard, W&B, SwanLab, Trackio and MLflow.

Each tracker is a process of its own that follows the files of the run. Its library can therefore
neither stop nor slow the training, and can be ended when it hangs.
"""
