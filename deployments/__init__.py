"""The graph on Ray Serve: one deployment per stage, each a thin wrapper over `pipeline`.

`app.build` puts the deployments together as serve_config.yaml says. `graph.Graph` sends a request through the stages.
`http` receives the requests and answers them, and `jobs` judges recordings in the background. Both use `access`, the
keys, and `results`, the form of a result.
"""
