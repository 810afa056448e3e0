"""What happens around a model: run folder, training, evaluation, comparison.

Places that lean on the inner ways of libraries, each with the test that fails when they change:

- `Trainer._accelerator_connector.use_distributed_sampler` (tests/data/test_datamodule.py)
- Lightning calls `set_epoch` of a sampler before each epoch (tests/data/test_datamodule.py)
- `Trainer.callback_metrics` has the training loss in `on_train_epoch_end` (tests/experiment/test_experiments.py)
- `LightningCLI(run=False)`, `config` and `config_init` (tests/experiment/test_experiments.py)
- the wording of jsonargparse's errors (tests/experiment/test_experiments.py)
- `Trainer.fit_loop.max_epochs` can be set, and Lightning's rate finder restores the weights
  (tests/experiment/test_practice.py)
- the counters of `Trainer.fit_loop` and its `epoch_loop`, `restarting`, `epoch_loop.max_steps` that can be set,
  `callback_metrics` that can be filled, the state of `ModelCheckpoint` (tests/experiment/test_resume.py)
- a `Timer` that is no callback of the trainer tells the time that remains (tests/experiment/test_resume.py)
- weight averaging swaps weights before validation and keeps the averaged ones (tests/experiment/test_practice.py), and
  `WeightAveraging._average_model` knows whether it has begun (tests/experiment/test_start.py)
- the options of `Trainer` and `ModelCheckpoint` (tests/experiment/test_lightning_options.py)
- jsonargparse leaves out a link whose target is no argument of the task, and finds the arguments behind `**options`
  (tests/experiment/test_experiments.py)
- the trees inside `HistGradientBoostingRegressor` (tests/models/test_baselines.py)
- `LightningCLI.instantiate_trainer` gives a trainer each time that it is called (tests/experiment/test_batch.py)
- `torch.nn.modules.batchnorm._NormBase` and its `num_batches_tracked` (tests/models/test_recomputation.py)
- source files of lightning, torch and smp can be read as text (tests/experiment/test_spelling.py)
- `torch.ops.mkldnn._is_mkldnn_bf16_supported`, to leave bfloat16 to processors that have it
"""
