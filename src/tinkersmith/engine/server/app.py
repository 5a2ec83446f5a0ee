"""The Tinker API and two inference APIs as an ASGI application, behind checks of host and key.

A numbered operation is never refused by an HTTP status once its number is known: the client would
wait forever for the missing number. It is accepted, and its future fails with a sentence. Every
other error is a 4xx.
"""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from tinkersmith.engine.scheduling.sessions import Sessions
from tinkersmith.engine.server.api_errors import ANTHROPIC, OPENAI, error_response
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
from tinkersmith.engine.server.routes.anthropic_messages import AnthropicMessages
from tinkersmith.engine.server.routes.archive import ArchiveRoutes
from tinkersmith.engine.server.routes.inference_fields import answering
from tinkersmith.engine.server.routes.inference_models import InferenceModels
from tinkersmith.engine.server.routes.openai_chat import OpenAIChat
from tinkersmith.engine.server.routes.openai_completions import OpenAICompletions
from tinkersmith.engine.server.routes.rest import RestRoutes, refused_routes
from tinkersmith.engine.server.routes.sampling import SamplingRoutes
from tinkersmith.engine.server.routes.service import ServiceRoutes
from tinkersmith.engine.server.routes.traces import TraceRoutes
from tinkersmith.engine.server.routes.training import TrainingRoutes
from tinkersmith.engine.server.status import METRICS_PATH, EngineStatus
from tinkersmith.engine.server.uploads import UploadRoutes
from tinkersmith.engine.storage.catalogue import Catalogue
from tinkersmith.guards.hosts import HostGuard


def make_app(
    sessions: Sessions,
    catalogue: Catalogue,
    key: str,
    hosts: frozenset[str],
    any_own_address: bool = False,
    status: EngineStatus | None = None,
) -> ASGIApp:
    """The whole API, for requests to one of `hosts`, or with `any_own_address` to any own address.

    Every request except health checks and downloads must carry `key`.
    """
    rest = RestRoutes(sessions.store)
    traces = TraceRoutes(sessions.thread.traces)
    uploads = UploadRoutes(sessions, catalogue)
    handlers = [
        *ServiceRoutes(sessions, catalogue).routes(),
        *TrainingRoutes(sessions, catalogue).routes(),
        *uploads.routes(),
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
            *_inference_routes(InferenceModels(sessions, catalogue)),
            Route(
                METRICS_PATH,
                in_sentences((status or EngineStatus(sessions)).metrics),
                methods=["GET"],
            ),
            Route(f"{FILES}/{{token}}/traces/{{session_id}}.json", in_sentences(traces.download)),
            Route(
                f"{FILES}/{{token}}/uploads/{{upload}}/{{name}}",
                in_sentences(uploads.put, body_type=None),
                methods=["PUT"],
            ),
            Route(f"{FILES}/{{token}}/{{path:path}}", in_sentences(rest.download)),
        ],
        exception_handlers={HTTPException: no_such_route},
    )
    app.router.redirect_slashes = False  # a redirect is no sentence
    with_key = KeyGuard(app, key, is_token)
    guarded = HostGuard(
        with_key,
        hosts,
        lambda scope, sentence, status: error_response(scope["path"], sentence, status),
        any_own_address=any_own_address,
    )
    return EarlyAnswers(guarded)


def _inference_routes(models: InferenceModels) -> list[Route]:
    """The routes of OpenAI's and Anthropic's API."""
    completions, chat, messages = (
        OpenAICompletions(models),
        OpenAIChat(models),
        AnthropicMessages(models),
    )
    handlers = [
        ("GET", OPENAI, "/models", completions.list_models),
        ("GET", OPENAI, "/models/{name:path}", completions.one_model),
        ("POST", OPENAI, "/completions", completions.completions),
        ("POST", OPENAI, "/chat/completions", chat.chat_completions),
        ("POST", ANTHROPIC, "/messages", messages.messages),
        ("POST", ANTHROPIC, "/messages/count_tokens", messages.count_tokens),
    ]
    return [
        Route(api + path, answering(api + path, handler), methods=[method])
        for method, api, path, handler in handlers
    ]


def _body_type(path: str) -> str:
    return PROTOBUF if path == "/forward_backward" else JSON
