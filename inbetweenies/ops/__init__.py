"""The operator's verbs: what `inbetweenies.rollout` decides, done with a store, files and clocks."""
