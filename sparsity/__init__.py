"""Sparsity: networks whose activations are sparse, in JAX and Flax.

A config names a model whose every MLP passes its pre-activations through one sparsifier; the same sparsifier object is
trained, analysed in theory, measured, and exploited for speed. Where to begin:

- `sparsity.layers.mlp.SparseMLP`, the MLP, and `sparsity.ops.sparsifiers`, the table of what can stand in it;
- `sparsity.evals.recording.record_sparsity`, for models that are not ours;
- `sparsity.theory.edge_of_chaos.at`, the weights that an activation asks for;
- `sparsity.run.run`, one run, whole, and `sparsity.evals`, what is measured of it;
- `sparsity.decode.weights.prepared`, weights as a sparse network reads them when it decodes.
"""
