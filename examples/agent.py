"""A pydantic-ai agent whose tools are those of Stylus: it decides itself when to search, compose or draw.

pip install "pydantic-ai-slim[mcp,anthropic]"
python -m examples.agent anthropic:claude-sonnet-5-5 "Draw me a red star, and tell me which adapters you used."
"""

import asyncio
import sys

from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.models import Model

STYLUS = StdioTransport("stylus", ["serve"])


async def ask(model: Model | str, request: str, server: StdioTransport | str = STYLUS) -> str:
    """What the agent answers when it is done with its tools. `server` may also be the URL of one that runs already."""
    toolset = MCPToolset(server, include_instructions=True)
    agent = Agent(model, toolsets=[toolset])
    async with agent:
        return (await agent.run(request)).output


def main() -> None:
    print(asyncio.run(ask(sys.argv[1], sys.argv[2])))


if __name__ == "__main__":
    main()
