"""Build, train and evaluate one experiment.

Places that lean on the inner ways of libraries, each with the test that fails when they change:

- `Trainer._accelerator_connector.use_distributed_sampler` (tests/data/test_datamodule.py)
- Lightning calls `set_epoch` of a sampler before each epoch (tests/data/test_datamodule.py)
- `Trainer.callback_metrics` has the training loss in `on_train_epoch_end` (tests/training/test_experiments.py)
- `LightningCLI(run=False)`, `config` and `config_init` (tests/training/test_experiments.py)
- the wording of jsonargparse's errors (tests/training/test_experiments.py)
- `Trainer.fit_loop.max_epochs` can be set, and Lightning's rate finder restores the weights
  (tests/training/test_practice.py)
- the counters of `Trainer.fit_loop` and its `epoch_loop`, `restarting`, `epoch_loop.max_steps` that can be set,
  `callback_metrics` that can be filled, the state of `ModelCheckpoint` (tests/training/test_resume.py)
- a `Timer` that is no callback of the trainer tells the time that remains (tests/training/test_resume.py)
- weight averaging swaps weights before validation and keeps the averaged ones (tests/training/test_practice.py), and
  `WeightAveraging._average_model` knows whether it has begun (tests/training/test_start.py)
- the options of `Trainer` and `ModelCheckpoint` (tests/training/test_lightning_options.py)
- jsonargparse leaves out a link whose target is no argument of the task, and finds the arguments behind `**options`
  (tests/training/test_experiments.py)
- the trees inside `HistGradientBoostingRegressor` (tests/baselines/test_baselines.py)
- `LightningCLI.instantiate_trainer` gives a trainer each time that it is called (tests/training/test_batch_size.py)
- source files of lightning, torch and smp can be read as text (tests/training/test_config_keys.py)
- `torch.ops.mkldnn._is_mkldnn_bf16_supported`, to leave bfloat16 to processors that have it
"""
