"""Web: artefacts over HTTP, for programs (`vprompt serve`) and for people (`vprompt ui`).

Requests, queues, limits and the one page live here. No model code, no training, and nothing that
fetches: this room listens, it does not call. FastAPI and uvicorn come with the extra `serve`.
"""
