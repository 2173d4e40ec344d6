
# Values of arguments come from the program: names of domains, runs. zsh quotes them.
# $1=kind
_virt_rbd_backup_values() {
  local -a values
  values=("${(@f)$(virt-rbd-backup __complete "$1" '' "${(@Q)${(z)BUFFER}}" </dev/null 2>/dev/null)}")
  compadd -- "${(@)values:#}"
}
