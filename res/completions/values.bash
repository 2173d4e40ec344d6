
# Values of arguments come from the program: names of domains, runs.
# $1=kind $2=the word, as it was typed
_virt_rbd_backup_values() {
  local word=${2#[\'\"]}
  virt-rbd-backup __complete "$1" "${word//\\/}" "${COMP_WORDS[@]:1}" </dev/null 2>/dev/null
}
_virt_rbd_backup_defined() { _virt_rbd_backup_values defined "$1"; }
_virt_rbd_backup_saved() { _virt_rbd_backup_values saved "$1"; }
_virt_rbd_backup_domains() { _virt_rbd_backup_values domains "$1"; }
_virt_rbd_backup_points() { _virt_rbd_backup_values points "$1"; }
_virt_rbd_backup_runs() { _virt_rbd_backup_values runs "$1"; }
_virt_rbd_backup_groups() { _virt_rbd_backup_values groups "$1"; }

_virt_rbd_backup() {
  local -
  set -f # a name is no pattern for files
  COMPREPLY=()
  # bash splits words at = and :, which shtab takes for words of their own
  [[ ${COMP_WORDS[COMP_CWORD]} == [=:] || ${COMP_WORDS[COMP_CWORD - 1]} == [=:] ]] && return
  _shtab_virt_rbd_backup "$@"
  if [[ ${COMP_WORDS[COMP_CWORD]} == [\'\"]* ]]; then
    compopt -o filenames # in quotes, bash quotes them itself
  elif ((${#COMPREPLY[@]})); then # not elsewhere: it would take a domain for a directory of the same name
    mapfile -t COMPREPLY < <(printf '%q\n' "${COMPREPLY[@]}")
  fi
}
complete -F _virt_rbd_backup virt-rbd-backup
