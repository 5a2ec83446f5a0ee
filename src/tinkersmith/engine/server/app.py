"""The Tinker API as an ASGI application: all routes, behind the checks of host and API key.

A numbered operation is never refused by an HTTP status once its number is known: the client would
wait forever for the missing number. It is accepted, and its future fails with a sentence. Every
other error is a 4xx.
"""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from tinkersmith.engine.scheduling.sessions import Sessions
from tinkersmith.engine.server.hosts import HostGuard
from tinkersmith.engine.server.http import (
    API,
    FILES,
    JSON,
    PROTOBUF,
    EarlyAnswers,
    KeyGuard,
    in_sentences,
    no_such_route,
)
from tinkersmith.engine.server.identity import IdentityRoutes, is_token
from tinkersmith.engine.server.routes.archive import ArchiveRoutes
from tinkersmith.engine.server.routes.rest import RestRoutes, refused_routes
from tinkersmith.engine.server.routes.sampling import SamplingRoutes
from tinkersmith.engine.server.routes.service import ServiceRoutes
from tinkersmith.engine.server.routes.traces import TraceRoutes
from tinkersmith.engine.server.routes.training import TrainingRoutes
from tinkersmith.engine.storage.catalogue import Catalogue


def make_app(
    sessions: Sessions,
    catalogue: Catalogue,
    key: str,
    hosts: frozenset[str],
    any_own_address: bool = False,
) -> ASGIApp:
    """The whole API, for requests to one of `hosts`, or with `any_own_address` to any own address.

    Every request except health checks and downloads must carry `key`.
    """
    rest = RestRoutes(sessions.store)
    traces = TraceRoutes(sessions.thread.traces)
    handlers = [
        *ServiceRoutes(sessions, catalogue).routes(),
        *TrainingRoutes(sessions, catalogue).routes(),
        *SamplingRoutes(sessions, catalogue).routes(),
        *rest.routes(),
        *ArchiveRoutes(sessions).routes(),
        *traces.routes(),
        *IdentityRoutes(key).routes(),
        *refused_routes(),
    ]
    app = Starlette(
        routes=[
            *(
                Route(API + path, in_sentences(handler, _body_type(path)), methods=[method])
                for method, path, handler in handlers
            ),
            Route(f"{FILES}/{{token}}/traces/{{session_id}}.json", in_sentences(traces.download)),
            Route(f"{FILES}/{{token}}/{{path:path}}", in_sentences(rest.download)),
        ],
        exception_handlers={HTTPException: no_such_route},
    )
    app.router.redirect_slashes = False  # a redirect is no sentence
    guarded = HostGuard(KeyGuard(app, key, is_token), hosts, any_own_address=any_own_address)
    return EarlyAnswers(guarded)


def _body_type(path: str) -> str:
    return PROTOBUF if path == "/forward_backward" else JSON
