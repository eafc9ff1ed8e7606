# A lasting bash: step after step in one shell, whose state stays. Read as the start-up file of
#
#   bash -c 'exec 14>&2 2>/dev/null; exec bash --noprofile --rcfile session.bash --noediting -i'
#
# with ctl on descriptor 15. An interactive shell, for only that goes back to its prompt at an interrupt, whatever it is
# in the midst of, and at errors that end any other. It has no terminal and would say so: hence the detour of stderr.
# The prompt never shows; what is done before it, PROMPT_COMMAND, takes steps: code up to a NUL byte, answered by END.
# The code runs outside of any function, where `declare` makes what lasts.

exec 13<> <(:) # a pipe to ourselves: the one way to get text out of `trap` without a process
exec 2>&14 14>&-
exec 0</dev/null
set +m +H +o history
unset HISTFILE
PS1='' PS2='' __sandfork_state=new __sandfork_code='' __sandfork_trap='' __sandfork_stdin=$PWD/.stdin

# What an interrupt leaves comes back here as PROMPT_COMMAND, and what leaves the loop by a `break` of its own by `eval`.
__sandfork_loop='while { __sandfork_next "$?"; } >/dev/null 2>&1; do builtin eval "$__sandfork_code"; done
builtin eval "$__sandfork_loop"'
PROMPT_COMMAND=$__sandfork_loop

# Answer for the step that is over, with status $1, and take the next. Nothing in here starts a process but `rm`: the
# program may have left no room for one.
__sandfork_next() {
    local on=${-//[!vx]/}
    [[ $BASHPID == "$$" ]] || exit "$1" # an interrupt right after its fork sends a subshell back here, too
    set +vx
    __sandfork_hold_interrupts
    case $__sandfork_state in
        new) builtin printf '!\0\0\0\0\0\0\0' >&15 ;;
        running) __sandfork_end "$1" ;;
    esac
    __sandfork_state=waiting PROMPT_COMMAND=$__sandfork_loop
    __sandfork_read 15 __sandfork_code || exit 125
    __sandfork_code=${on:+set -$on;}$__sandfork_code
    if [[ -f $__sandfork_stdin ]]; then
        exec 0<"$__sandfork_stdin"
        /bin/rm -f -- "$__sandfork_stdin"
    else
        exec 0</dev/null
    fi
    __sandfork_state=running
    builtin eval "${__sandfork_trap:-builtin trap - INT}"
}

# Between steps an interrupt does nothing, and the program's own trap must not hear of it. Of several records in the
# pipe, which an interrupt in here can leave, the last is right.
__sandfork_hold_interrupts() {
    builtin trap -p INT >&13
    builtin printf '\0' >&13
    builtin trap '' INT
    while __sandfork_read 13 __sandfork_trap && builtin read -t 0 -u 13; do :; done
}

# Read from $1 into the variable $2 up to a NUL byte: bytes, whatever the locale, and for as long as it takes.
__sandfork_read() {
    LC_ALL=C IFS='' TMOUT='' builtin read -r -d '' -u "$1" "$2"
}

# The frame END: status, and zeros for the times, which the server then takes itself.
__sandfork_end() {
    local status zeros='\0\0\0\0\0\0\0\0'
    builtin printf -v status '\\x%02x\\0\\0\\0' "$(($1 & 255))"
    builtin printf "E\\0\\0\\0\\x18\\0\\0\\0$status\\0\\0\\0\\0$zeros$zeros" >&15
}
