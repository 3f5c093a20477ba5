"""The networks, and the features taken from their layers. `pipeline.models` lists and fetches the weights; `stages`
holds the code that uses the networks."""
