"""The model that an export is made from: a run of ours, another tool's adapter, or a model's folder."""
