"""Settle what TensorFlow would otherwise decide by the machine it runs on."""

import os

import keras
import tensorflow as tf

from stages.core import environment


def configure_tensorflow(threads: int) -> None:
    """Make every later operation deterministic, computed by one thread of up to `threads`.

    An operation split over threads would sum in another order on other numbers of them; instead,
    network.DataParallel gives each thread operations of its own. Call this before any other use of
    TensorFlow.
    """
    for name, value in environment.PINS.items():
        assert os.environ[name] == value, f"{name} was changed after stages was imported"
    # The user's own keras.json and environment may say otherwise.
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.experimental.enable_op_determinism()
    # TensorFlow's rewriting of graphs would turn x / sqrt(y) into x * rsqrt(y), whose hardware
    # approximation differs between makers of processors; nor does it repay the second it takes.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
