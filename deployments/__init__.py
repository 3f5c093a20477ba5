"""The graph on Ray Serve: one deployment a stage, thin wrappers over `pipeline`.

`app.build` puts the deployments together as serve_config.yaml says; `graph.Graph` is the order in which a request
visits them; `http` takes the requests and answers them.
"""
