"""Search for good settings of an experiment: the space, the plan, the search, what it says, and what it writes.

Places that lean on the inner ways of Optuna, each with the test that fails when they change:

- `optuna.trial.Trial(study, id)` takes over a trial that another process began (tests/experiment/test_tune_search.py)
- `BaseSampler.before_trial` is called before anything is drawn for a trial (tests/experiment/test_tune_search.py)
"""
