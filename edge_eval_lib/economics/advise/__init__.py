"""The choice: which variant, on what, at what price.

`options` are what a study offers, `inputs` what the choice depends on, `evaluation` what each
option costs, takes and emits, `choice` the best of them, how sure that is and what would change it,
`elsewhere` the options on hardware that was not measured.
"""
