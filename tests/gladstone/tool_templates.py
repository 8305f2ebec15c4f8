"""Chat templates that support tools, in the formats that model families document."""

HERMES = """\
{{- bos_token }}{{- '<|im_start|>system\\nYou are a function calling AI model. <tools> ' }}
{%- for tool in tools or [] %}{{- tool.function | tojson }}{% if not loop.last %}{{- '\\n' }}{% endif %}{% endfor %}
{{- ' </tools><|im_end|>\\n' }}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls is defined %}
        {{- '<|im_start|>assistant' + ('\\n' + message.content if message.content else '') }}
        {%- for tool_call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.function.name + '", "arguments": ' }}
            {{- tool_call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>tool\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if not loop.last %}{{- '\\n' }}{%- endif %}{{- '<|im_end|>' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# tools stand before the last question only, ids have nine letters or digits
MISTRAL = """\
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools is not none and loop.index0 == ns.last %}
            {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.id is not defined or tool_call.id | length != 9 %}
                {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
            {%- endif %}
            {%- set call = tool_call.function | tojson %}
            {{- call[:-1] + ', "id": "' + tool_call.id + '"}' + (', ' if not loop.last else ']' + eos_token) }}
        {%- endfor %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content + eos_token }}
    {%- elif message.role == 'tool' %}
        {%- if message.tool_call_id is not defined or message.tool_call_id | length != 9 %}
            {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' + message.tool_call_id + '"}' }}
        {{- '[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""

# arguments are text, and a turn of calls has no content
TEXT_ARGUMENTS = """\
{{- bos_token }}{% for tool in tools or [] %}{{- tool | tojson }}{% endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.content is none %}
        {{- '<|assistant|>' }}
        {%- for call in message.tool_calls %}
            {{- '<|call|>' + call.function.name + '\\n```json\\n' + call.function.arguments + '\\n```' }}
        {%- endfor %}
        {{- '<|end|>' }}
    {%- else %}
        {{- '<|' + message.role + '|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""

ONE_CALL = """\
{%- for tool in tools or [] %}{{- tool | tojson(indent=4) + '\\n\\n' }}{% endfor %}
{%- for message in messages %}
    {%- if message.tool_calls is defined %}
        {{- '<|start|>assistant<|body|>{"name": "' + message.tool_calls[0].function.name + '", "parameters": ' }}
        {{- message.tool_calls[0].function.arguments | tojson + '}<|end|>' }}
    {%- else %}
        {{- '<|start|>' + message.role + '<|body|>' + message.content | trim + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|body|>' }}{%- endif %}"""

TOOL_TEMPLATES = {"hermes": HERMES, "mistral": MISTRAL, "text-arguments": TEXT_ARGUMENTS, "one-call": ONE_CALL}
