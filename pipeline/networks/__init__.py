"""The networks, and the features taken from their layers. Which weights exist and how they are fetched is in
`pipeline.models`; what a stage does with a network is in `stages`."""
