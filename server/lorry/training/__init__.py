"""Trains adapters: examples become token ids, transformers' Trainer and PEFT do the rest, and out
come the two files of an adapter with a record of how they were made.

    examples.py         what the user wrote, line by line
    rendering.py        an example as token ids, with the tokens that are learned marked
    data_survey.py      counts and warnings about the examples
    training_recipe.py  every setting of a run, its defaults and presets
    adapter_model.py    the base with an adapter to train, and the adapter's files
    step_memory.py      what a run takes beside the base, before it takes it
    job.py              a run
    monitor.py          what the run tells, and when it has to stop
    evaluation.py       the adapter beside its base, on examples that it did not learn
    training_record.py  how an adapter was made

Nothing of the server imports this package.
"""
