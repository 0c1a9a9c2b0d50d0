from hypothesis import settings

# A busy machine is slow, and that is no fault of the code: pytest's own time limit remains.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
